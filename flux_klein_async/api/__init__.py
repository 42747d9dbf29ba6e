"""What the service says: values in, values out."""
