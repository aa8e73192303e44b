"""The same files by every road into a run: a folder, a list, archives, a table."""

import csv
import io
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq

ROADS = ("folder", "manifest", "a.tar", "b.tar.gz", "c.zip", "d.parquet")


def write_roads(files, root):
    """The same files as a folder, a manifest of it, archives, and a Parquet table."""
    (root / "folder").mkdir(parents=True)
    for name, data in files.items():
        (root / "folder" / name).write_bytes(data)
    with (root / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["uri", "name"], *([f"folder/{name}", name] for name in files)])
    for path, mode in ((root / "a.tar", "w"), (root / "b.tar.gz", "w:gz")):
        with tarfile.open(path, mode) as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    with zipfile.ZipFile(root / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    table = pa.table({"image": list(files.values()), "name": list(files)})
    pq.write_table(table, root / "d.parquet", row_group_size=50)
    inputs = [root / name for name in ("folder", "manifest.csv", "a.tar", "b.tar.gz", "c.zip", "d.parquet")]
    return [*map(str, inputs)]
