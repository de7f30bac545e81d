"""Inputs that are URLs.

A URL is resolved to a list of files with their versions, once per command. Each file is copied to
the cache, and from then on it is read like any other file on the disk. A build copies all files
before it reads them, an estimate only a few, and a stream copies each file when it is reached.

    fetch.py          the story: mirror, listing, cache, several transfers at once
    on_demand.py      the files of streams, which are copied when they are needed, and of estimates
    stream_copies.py  the limit of the disk space of the copies that streams make
    addresses.py      which inputs are URLs, and what may be shown of them
    remote_file.py    one file of a service, and the errors of services
    cache.py          where files and listings are kept
    transfer.py       one file: retries, continuing after a break, checks
    http.py           https:// and http://
    hub.py            hf://, with hub_selection.py: which files of a dataset a path means
    object_store.py   s3://, gs:// and every other protocol of fsspec
    mirror.py         the folder that is asked before the network
"""
