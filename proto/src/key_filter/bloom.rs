//! A split block Bloom filter: one block of 256 bits a key, one bit in each of its eight words.
//!
//! ```text
//!   hash  ├── upper half: which block ──┤├── lower half x 8 odd numbers: which bit of each word ──┤
//! ```
//!
//! A lookup touches one cache line. Of keys that are not there 1 in 40 passes with 8 bits a key, 1 in 1,000 with 16.
//!
//! Source: Putze, Sanders, Singler, "Cache-, Hash- and Space-Efficient Bloom Filters", 2007; constants as in Parquet's.

use bytes::Bytes;

/// Words of a block.
const WORDS: usize = 8;
/// Bytes of a block.
const BLOCK_BYTES: usize = WORDS * 4;
/// Odd numbers that pick a bit of each word.
const SALTS: [u32; WORDS] = [
    0x47b6_137b,
    0x4497_4d91,
    0x8824_ad5b,
    0xa2b7_289d,
    0x7054_95c7,
    0x2df1_424b,
    0x9efc_4947,
    0x5c6b_fb31,
];

/// Hashes that were put in, and some more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bloom {
    /// At least one.
    blocks: Vec<[u32; WORDS]>,
}

impl Bloom {
    /// Of about so many bytes, at least one block.
    pub fn new(bytes: usize) -> Self {
        Self {
            blocks: vec![[0; WORDS]; (bytes / BLOCK_BYTES).max(1)],
        }
    }

    pub fn insert(&mut self, hash: u64) {
        let block = self.block_of(hash);
        let words = &mut self.blocks[block];
        for (word, bit) in words.iter_mut().zip(bits(hash)) {
            *word |= bit;
        }
    }

    pub fn contains(&self, hash: u64) -> bool {
        let words = &self.blocks[self.block_of(hash)];
        words.iter().zip(bits(hash)).all(|(word, bit)| word & bit != 0)
    }

    fn block_of(&self, hash: u64) -> usize {
        // The upper half as a fraction of the blocks.
        (((hash >> 32) * self.blocks.len() as u64) >> 32) as usize
    }

    pub fn to_bytes(&self) -> Bytes {
        self.blocks.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// `None` if these are not whole blocks.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
        if blocks.is_empty() || !rest.is_empty() {
            return None;
        }
        let block = |bytes: &[u8; BLOCK_BYTES]| {
            let mut words = [0; WORDS];
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *word = u32::from_le_bytes(*bytes);
            }
            words
        };
        Some(Self {
            blocks: blocks.iter().map(block).collect(),
        })
    }
}

fn bits(hash: u64) -> [u32; WORDS] {
    SALTS.map(|salt| 1 << ((hash as u32).wrapping_mul(salt) >> 27))
}

#[cfg(test)]
mod tests {
    use super::super::mixed;
    use super::*;

    #[test]
    fn has_every_key_and_few_others() {
        for (keys, bits_per_key, share_max) in [(10, 16, 0.02), (10_000, 16, 0.002), (100_000, 8, 0.035)] {
            let mut bloom = Bloom::new(keys * bits_per_key / 8);
            (0..keys).for_each(|key| bloom.insert(mixed(key as i64)));
            assert!((0..keys).all(|key| bloom.contains(mixed(key as i64))));
            let others = (0..100_000).filter(|n| bloom.contains(mixed(-1 - n))).count();
            assert!(others as f64 <= share_max * 1e5, "{others} with {bits_per_key} bits");
            assert_eq!(Bloom::from_bytes(&bloom.to_bytes()), Some(bloom));
        }
    }

    #[test]
    fn broken_blocks_are_refused() {
        assert_eq!(Bloom::from_bytes(&[]), None);
        assert_eq!(Bloom::from_bytes(&[0; BLOCK_BYTES + 1]), None);
    }
}
