"""From what the user points at to numbered rows.

`classes` scans labelled folders for training. For labelling, `inputs` turns folders, prefixes, `manifests`, `archives`
(tar), `zips` and `tables` (Parquet) into candidates, `planning` numbers and keeps them, `reading` gives a row's bytes.
"""
