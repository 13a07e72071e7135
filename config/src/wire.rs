//! The push protocol as generated from `proto/weft.proto`.
#![allow(missing_docs, unreachable_pub, clippy::all)]

tonic::include_proto!("weft.v1");
