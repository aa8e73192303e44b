"""Compare two outputs over the same inputs: `tlray compare OLD NEW`.

`pairs`: the rows that both have.
`changes`: which labels change, counted and with the surest examples.
`compare`: reads both outputs and writes the result.
`page`: the page of the result.
"""
