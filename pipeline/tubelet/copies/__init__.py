"""Training copies: small, seekable files of a manifest's videos, and the manifest of these."""
