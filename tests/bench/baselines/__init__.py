"""What figures are measured beside: the least that the libraries alone can do. gunicorn serves each by itself."""
