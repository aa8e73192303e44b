"""Turn what the user points at into candidates, numbered rows and bytes.

`labelled`: class folders, a list, archives or tables of labelled images, for training.
`shards`: labelled members of archives and rows of tables.
`places`: where labelled images lie, and their bytes.
`listing`: folders, prefixes, manifests, archives and tables as candidates, for prediction.
`candidates`: the candidate, and the checks of its name.
`manifests`: lists of addresses and S3 Inventory reports.
`archives`: tar archives, plain or gzipped.
`zips`: zip archives.
`parquet`: tables with a column of images.
`reading`: the bytes of planned rows.

pyarrow's CSV, JSON and ORC readers are imported in the functions that use them: most inputs need none.
"""
