//! OCI image store client.
