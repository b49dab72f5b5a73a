"""Measure functions as Knative Services, their start from zero pods and the capacity of a pod: `make bench-cluster`.

Development must be deployed and otherwise unused. Copies of functions are measured and deleted in the end; the accounts
that it creates stay. testbed.py deploys everything; generator.py sends the requests from another pod.
"""
