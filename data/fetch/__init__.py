"""Genomes and benchmark sets by name: `dnassm fetch`.

The catalogue (``catalogue.toml``) says where a file is published; `job` fetches what an entry
names, `download` one file, `web` speaks HTTP, `digests` and `lock` check what came, `unpack` opens
archives. Only the standard library is used: pooch, the usual choice, begins a file anew after a cut
and wants every digest beforehand, and its lock would be one more format.
"""
