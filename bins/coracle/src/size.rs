//! Sizes as people write them: `512m`, `2g`, `1048576k`, plain bytes.

const MIB: u64 = 1024 * 1024;

/// Parses a size and rounds it up to whole MiB.
///
/// # Errors
/// Says what was wrong with the text.
pub fn parse_mib(text: &str) -> Result<u64, String> {
    Ok(parse_bytes(text)?.div_ceil(MIB))
}

/// Parses a size.
///
/// # Errors
/// Says what was wrong with the text.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1024,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => 1024 * MIB,
        "t" | "tb" | "tib" => 1024 * 1024 * MIB,
        other => return Err(format!("unknown unit {other:?}: use k, m, g or t")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is not a size: write a number such as 512m"))?;
    let bytes = number.checked_mul(unit).ok_or_else(|| format!("{text} is too large"))?;
    if bytes == 0 {
        return Err("a size of zero makes no sense here".to_owned());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_two() {
        assert_eq!(parse_mib("512m"), Ok(512));
        assert_eq!(parse_mib("2G"), Ok(2048));
        assert_eq!(parse_mib("1048576k"), Ok(1024));
    }

    #[test]
    fn a_part_of_a_mebibyte_counts_whole() {
        assert_eq!(parse_mib("1"), Ok(1));
        assert_eq!(parse_mib("1025k"), Ok(2));
    }

    #[test]
    fn nonsense_is_named() {
        for bad in ["", "m", "-1m", "1.5g", "9q", "0", "99999999999t"] {
            assert!(parse_mib(bad).is_err(), "{bad}");
        }
    }
}
