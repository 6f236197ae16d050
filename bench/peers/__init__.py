"""What a user would pick instead of tensorblob, each behind the same two classes: a module here is one system.

A module says `NAME`, `PACKAGES` (distributions whose versions go into the report), `HOW` (which of the library's calls
it uses) and `GIVES_UP` (what those do not promise where ours do, so that a lead can be judged), and defines a `Writer`
and a `Reader` as `contract.py` describes them. It does what the library's documentation recommends for this work, in as
few lines as that takes, so that each can be judged fair in a minute. Every system runs in a process of its own
(`worker.py`), and the published tensorblob in a virtual environment of its own too: its name is ours.
"""

SYSTEMS: dict[str, str] = {
    "ours": "here",
    "published": "published",
    "mmap_ninja": "here",
    "tensordict": "here",
    "torchrl": "here",
    "lmdb": "here",
    "h5py": "here",
    "lance": "here",
    "zarr": "here",
    "redis": "here",
}
"""Modules of this package, and whether they run `here` (the interpreter of the comparison) or in the published one's."""

LIMIT = "limits"
