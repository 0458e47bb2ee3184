"""The dashboard: a study's folder, looked at; it reads and never writes."""
