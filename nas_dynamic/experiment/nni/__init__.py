"""The backend of experiments: supernets of a configuration, trained by NNI."""
