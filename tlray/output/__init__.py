"""The files of a prediction run.

- `plan`: the inputs, numbered once, below `_plan/`.
- `schema`: the columns of the labels.
- `rowset`: sets of row ids as bitmaps.
- `parts`: write the labels as Parquet parts.
- `ledger`: what is known of each part, for a quick resume.
- `receipt`: the receipt that proves a finished run.
- `reader`: read labels back; `finished`: open a finished output, and read its images.
- `shares`: the classes' shares, corrected for label shift.
- `verify`: check an output against its plan and receipt.
"""
