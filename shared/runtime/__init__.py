"""What every process needs: settings, logs, metrics, deadlines, problems. Imports no other package of shared."""
