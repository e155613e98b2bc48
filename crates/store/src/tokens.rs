//! Tokens as bytes: seven bits a byte, the low ones first, the high bit set on all bytes but a token's last.

use crate::cursor::Cursor;

/// Positions in a block of tokens, if pages are not longer: large enough that blocks are few, small enough that a
/// manifest, which holds what is over, stays small beside a tail.
const BLOCK: usize = 16_384;

/// Positions in a block of tokens: a multiple of the page.
pub(crate) fn block_len(page: usize) -> usize {
    (BLOCK / page).max(1) * page
}

pub(crate) fn encode(tokens: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(tokens.len() * 3);
    for &token in tokens {
        let mut rest = token;
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
    }
    bytes
}

/// Exactly `count` tokens, which must be all there is.
pub(crate) fn decode(bytes: &[u8], count: usize) -> Result<Vec<u32>, String> {
    // A token has at least a byte.
    if count > bytes.len() {
        return Err(format!("{} bytes are no {count} tokens", bytes.len()));
    }
    let mut cursor = Cursor(bytes);
    let mut tokens = Vec::with_capacity(count);
    for _ in 0..count {
        let mut token = 0u64;
        for shift in (0..).step_by(7) {
            let byte = cursor.u8("a token")?;
            token |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            if shift == 28 {
                return Err("a token is longer than five bytes".into());
            }
        }
        tokens.push(u32::try_from(token).map_err(|_| format!("token {token} is too large"))?);
    }
    cursor.end()?;
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn borders() {
        for token in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, 129_279, u32::MAX - 1, u32::MAX] {
            assert_eq!(decode(&encode(&[token]), 1).unwrap(), [token]);
        }
        assert!(decode(&[0xff; 5], 1).is_err());
        assert!(decode(&[0xff, 0xff, 0xff, 0xff, 0x7f], 1).is_err());
        assert!(decode(&[1, 2], 1).is_err());
        assert!(decode(&[1], 2).is_err());
        assert_eq!(block_len(1024), 16_384);
        assert_eq!(block_len(100), 16_300);
        assert_eq!(block_len(20_000), 20_000);
    }

    proptest! {
        #[test]
        fn there_and_back(tokens in prop::collection::vec(any::<u32>(), 0..50)) {
            prop_assert_eq!(decode(&encode(&tokens), tokens.len()).unwrap(), tokens);
        }

        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..50), count in 0usize..1 << 40) {
            if let Ok(tokens) = decode(&bytes, count) {
                prop_assert_eq!(tokens.len(), count);
            }
        }
    }
}
