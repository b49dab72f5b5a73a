"""What functions do as Knative Services: the way from zero pods, and what a pod takes: `make bench-cluster`.

It runs where development is deployed and nobody uses it. What is measured are copies of functions, which go in the end;
the accounts that it makes stay. testbed.py puts all up, generator.py is what sends the requests, from a pod beside.
"""
