"""The dashboards as Python descriptions, which `python -m deploy.grafana.source` writes as JSON."""
