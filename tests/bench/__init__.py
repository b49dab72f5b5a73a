"""What speed costs: each figure beside a baseline made of the libraries alone, in the same run: `make bench`.

figures.py says what a figure is; the other files each measure some. docs/performance.md tells what they are good for.
"""
