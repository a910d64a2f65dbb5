"""Cedar SIS as a plugin of sis_pipeline. The provider is in `provider`, its mapping in cedar.yaml."""
