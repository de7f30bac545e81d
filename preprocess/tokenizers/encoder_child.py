"""The program of an encoder process: it encodes texts with a tokenizer.json, both from stdin; see encoder_process.py.

It is run as a file, because importing this package would take longer and more memory than the library does.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import threading
from array import array
from queue import SimpleQueue
from typing import Any

REQUEST = struct.Struct("<q")  # the number of bytes of JSON that follow: first the tokenizer.json, then lists of texts
ANSWER = struct.Struct("<cqq")  # IDS, the number of texts, of ids; or ERROR, 0, the number of bytes of the message
IDS, ERROR = b"i", b"e"


def main() -> None:
    """Answer each list of texts on stdin: the number of ids of each text, int64, then all ids, uint32."""
    from tokenizers import Tokenizer

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_all, args=(requests,), daemon=True).start()
    try:
        encoder = Tokenizer.from_str(requests.get().decode())
        encoder.encode_special_tokens = True  # do not look for special tokens in text
        _write_ids([])
        while True:
            _write_ids(encoder.encode_batch_fast(json.loads(requests.get()), add_special_tokens=False))
    except BaseException as e:  # the library has no narrower exception; the parent raises it
        message = (str(e) or type(e).__name__).encode("utf-8", "replace")
        _write(ANSWER.pack(ERROR, 0, len(message)), message)
        os._exit(0)  # the other thread still reads


def _read_all(requests: SimpleQueue[bytes]) -> None:
    """Read the requests. End this process as soon as its parent has ended, even while it encodes."""
    while len(head := sys.stdin.buffer.read(REQUEST.size)) == REQUEST.size:
        requests.put(sys.stdin.buffer.read(*REQUEST.unpack(head)))
    os._exit(0)


def _write_ids(encodings: list[Any]) -> None:
    lengths, ids = array("q"), array("I")
    for encoding in encodings:
        ids.extend(encoding.ids)
        lengths.append(len(encoding))
    _write(ANSWER.pack(IDS, len(lengths), len(ids)), lengths.tobytes(), ids.tobytes())


def _write(*parts: bytes) -> None:
    for part in parts:
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
