"""Few labels: a head on frozen features, chosen by cross-validation among those that a ViViT can hold."""
