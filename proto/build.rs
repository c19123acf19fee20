//! Compiles the `.proto` files with protox, so that a fresh machine needs no protoc. Keeps their descriptors for gRPC
//! reflection, and those of Arrow Flight, whose code is generated elsewhere.

use prost::Message;
use std::path::PathBuf;

const FLIGHT: &str = "proto/arrow/flight.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/shard.proto",
        "proto/flight.proto",
        "proto/replication.proto",
        "proto/meta.proto",
        "proto/oracle.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    println!("cargo:rerun-if-changed={FLIGHT}");
    let all = protox::compile(files.iter().copied().chain([FLIGHT]), ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), all.encode_to_vec())?;
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
