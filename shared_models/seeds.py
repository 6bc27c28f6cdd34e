"""One job seed, from which every site, round and purpose derives its own."""

import hashlib


def derive_seed(job_seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, such as ``derive_seed(job.seed, "batches", site, round)``.

    It depends on nothing but its arguments: not on the engine, the order of sites, nor on what ran before.
    """
    text = "/".join([str(job_seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
