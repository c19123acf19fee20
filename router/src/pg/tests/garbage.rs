//! Malformed bytes, before and after startup: the connection ends, with an error where one can be told, and the server lives.

use super::raw::Raw;
use super::{Server, in_time};
use crate::pg::PgLimits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Steele and Vigna's SplitMix64: the seed is the test.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..self.next() % length).map(|_| self.next() as u8).collect()
    }
}

#[tokio::test]
async fn noise_at_startup_closes_the_connection() {
    let server = Server::start(PgLimits::default()).await;
    for seed in 0..200 {
        let mut random = Random(seed);
        let mut stream = TcpStream::connect(server.address).await.expect("connects");
        let mut noise = random.bytes(64);
        // Every other one begins like a packet of our protocol.
        if seed % 2 == 0 {
            let length = (noise.len() as u32 + 8).to_be_bytes();
            noise = [&length[..], &[0, 3, 0, 0], &noise].concat();
        }
        // The server may close while we still write.
        let _ = stream.write_all(&noise).await;
        let _ = stream.shutdown().await;
        let mut answer = vec![];
        in_time(async { drop(stream.read_to_end(&mut answer).await) }).await;
        assert!(!answer.contains(&b'Z') || answer.contains(&b'R'), "seed {seed}");
    }
    assert!(server.client().await.simple_query("SELECT upto(1)").await.is_ok());
}

#[tokio::test]
async fn noise_after_startup_is_answered_and_survived() {
    let server = Server::start(PgLimits {
        message_bytes_max: 1 << 16,
        ..PgLimits::default()
    })
    .await;
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut raw = Raw::start(server.address, &[("user", "ann")]).await;
        raw.until(b'Z').await;
        for _ in 0..8 {
            let kind = b"QPBDECHSdcfFX"[(random.next() % 13) as usize];
            let body = random.bytes(48);
            let length = (body.len() as i32 + 4).to_be_bytes();
            if raw.0.write_all(&[&[kind][..], &length, &body].concat()).await.is_err() {
                break;
            }
        }
        let _ = raw.0.write_all(&random.bytes(32)).await;
        let _ = raw.0.shutdown().await;
        in_time(raw.rest()).await;
    }
    for (bytes, code) in [
        (&b"Q\0\0\0\0"[..], "C08P01\0"),
        (b"Q\xff\xff\xff\xff", "C08P01\0"),
        (b"Q\x7f\xff\xff\xff", "C54000\0"),
        (b"!\0\0\0\x04", "C08P01\0"),
        (b"B\0\0\0\x08\0\0\xff\xff", "C08P01\0"),
    ] {
        let mut raw = Raw::start(server.address, &[("user", "ann")]).await;
        raw.until(b'Z').await;
        raw.0.write_all(bytes).await.expect("writes");
        let answer = in_time(raw.rest()).await;
        let text = answer
            .last()
            .map(|(_, body)| String::from_utf8_lossy(body).into_owned())
            .unwrap_or_default();
        assert!(text.starts_with("SFATAL") && text.contains(code), "{bytes:?}: {text:?}");
    }
    assert!(server.client().await.simple_query("SELECT upto(1)").await.is_ok());
}
