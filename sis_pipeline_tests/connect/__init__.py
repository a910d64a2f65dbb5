"""Proofs for sis_pipeline.connect, over real sockets and a real PostgreSQL."""
