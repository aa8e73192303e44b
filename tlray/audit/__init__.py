"""How good an archive's labels are, by a sample that a person looks at.

    tlray audit labels/ --sample 300
    tlray audit labels/ --answers labels/audit/sample.csv

`draw` picks the rows, `sheet` shows them, `form` is the CSV between tlray and the reviewer, `measure` counts.
"""
