"""Estimate an archive's classes and the quality of its labels from a sample that a person reviews.

    tlray audit labels/ --sample 300
    tlray audit labels/ --answers labels/audit/sample.csv
    tlray audit labels/ --answers labels/audit/sample*.csv --until 0.01

`draw`: draws the sample, in one round or several; `sampling`: the probabilities with which rows are drawn.
`sample`: the record of a sample.
`review`: the page on which a person reviews them.
`form`: the CSV of the answers.
`measure`: reads filled-in forms and writes the result; `estimate`: the result, after `metrics.census`.
`page`: the page of the result.
"""
