"""Copy a folder to or from S3 with boto3's transfer manager, as `aws s3 cp --recursive` does: ten transfers at once.

python bench/baselines/s3_copy.py FOLDER s3://BUCKET/PATH
python bench/baselines/s3_copy.py s3://BUCKET/PATH FOLDER

Nothing is compared with a manifest. A download is flushed to the disk at its end, as a pulled build is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager


def main() -> None:
    source, target = sys.argv[1:]
    client = boto3.client("s3")
    with create_transfer_manager(client, TransferConfig()) as manager:
        if target.startswith("s3://"):
            bucket, _, prefix = target.removeprefix("s3://").partition("/")
            paths = [path for path in Path(source).rglob("*") if path.is_file()]
            futures = [
                manager.upload(str(path), bucket, f"{prefix}/{path.relative_to(source).as_posix()}") for path in paths
            ]
        else:
            bucket, _, prefix = source.removeprefix("s3://").partition("/")
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
            keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
            paths = [Path(target, key.removeprefix(f"{prefix}/")) for key in keys]
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
            futures = [manager.download(bucket, key, str(path)) for key, path in zip(keys, paths, strict=True)]
        for future in futures:
            future.result()
    if not target.startswith("s3://"):
        for path in paths:
            with open(path, "rb") as file:
                os.fsync(file.fileno())


if __name__ == "__main__":
    main()
