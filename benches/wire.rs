//! How long the codecs take, per header.
#![expect(clippy::expect_used, reason = "a benchmark says what it expects by panicking")]

use std::hint::black_box;

use adit::wire::header;
use criterion::{Criterion, criterion_group, criterion_main};

/// A header of the older generation, whose layout the library reads but never writes.
fn legacy(host: &str, port: &str) -> [u8; header::LEGACY_LEN] {
    let mut bytes = [0; header::LEGACY_LEN];
    let current = header::encode(host, port, 0).expect("it fits");
    bytes[..270].copy_from_slice(&current[..270]);
    let checksum = crc32fast::hash(&bytes[..270]).to_be_bytes();
    bytes[270..].copy_from_slice(&checksum);
    bytes
}

fn stream_header(c: &mut Criterion) {
    let (host, port) = ("db.internal.example", 5432);
    let current = header::encode_stream(host, port).expect("it fits");
    let older = legacy(host, "5432");
    let mut changed = current;
    changed[20] ^= 1;

    let mut group = c.benchmark_group("stream_header");
    group.bench_function("encode", |b| {
        b.iter(|| header::encode_stream(black_box(host), black_box(port)));
    });
    group.bench_function("decode_275", |b| b.iter(|| header::decode(black_box(&current))));
    group.bench_function("decode_274", |b| b.iter(|| header::decode_legacy(black_box(&older))));
    group.bench_function("read_275", |b| b.iter(|| header::read(&mut black_box(&current[..]))));
    group.bench_function("reject_checksum", |b| {
        b.iter(|| header::read(&mut black_box(&changed[..])));
    });
    group.bench_function("reject_other_protocol", |b| {
        b.iter(|| header::read(&mut black_box(&[b'G'; header::LEN][..])));
    });
    group.finish();
}

criterion_group!(benches, stream_header);
criterion_main!(benches);
