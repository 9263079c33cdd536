"""Image encoders registered with timm."""
