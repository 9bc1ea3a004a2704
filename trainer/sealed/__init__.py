"""Folders of named arrays and documents that can prove they are whole.

Checkpoints and model folders are both of this kind. Layout:

    manifest.json               what is here, with sizes and SHA-256 sums, and a sum over itself
    arrays/0007-deep-ad_id.npy  one array each, in NumPy's own format
    NAME                        documents: text or JSON

Everything is plain data: no pickle, nothing that runs. A folder is filled under a temporary name
beside its place, forced to disk and renamed, so that a reader sees all of it or nothing of it.
"""
