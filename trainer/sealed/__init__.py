"""Checksummed folders of named arrays and documents, used for checkpoints and model folders.

Layout:

    manifest.json               list of all files with sizes and SHA-256 checksums, and a checksum of itself
    arrays/0007-deep-ad_id.npy  one file per array, in NumPy's format
    NAME                        documents: text or JSON

All content is plain data without pickle or code. A folder is written atomically: it is filled under a temporary name
in the same parent folder, synced to disk and renamed, so that readers see either all of it or nothing.
"""
