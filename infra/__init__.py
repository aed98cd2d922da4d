"""Ground floor: artifacts, fingerprints, clusters, tracking. Knows Ray, MLflow and disks; knows no pixel."""
