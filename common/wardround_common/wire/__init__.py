"""What crosses the wire: the schema, its limits, frames, blobs and error codes.

Start with `wardround.proto`, then `frames` (validated values), `blobstore` (bytes by digest),
`failures` (errors by code) and `limits`. docs/spec/wire.md is the specification.
"""
