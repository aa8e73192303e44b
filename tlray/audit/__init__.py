"""Estimate the share of an archive's labels that is right, from a sample that a person reviews.

    tlray audit labels/ --sample 300
    tlray audit labels/ --answers labels/audit/sample.csv

`draw`: draws the sample.
`sample`: the record of a sample.
`sheet`: the page that shows its images.
`form`: the CSV that the reviewer fills in.
`measure`: the result of a filled-in form.
"""
