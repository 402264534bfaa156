//! Amounts of CPU and memory, as Kubernetes writes them.

use std::cmp::Ordering;

/// An amount of a resource: `100m`, `0.5`, `64Mi` (Kubernetes' resource quantities). Not negative, not zero.
#[derive(Debug, Clone)]
pub struct Quantity {
    text: String,
    /// In thousandths.
    milli: u128,
}

const SUFFIXES: [(&str, u128); 14] = [
    ("", 1_000),
    ("m", 1),
    ("k", 1_000_000),
    ("M", 1_000_000_000),
    ("G", 1_000_000_000_000),
    ("T", 1_000_000_000_000_000),
    ("P", 1_000_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000_000),
    ("Ki", 1_000 << 10),
    ("Mi", 1_000 << 20),
    ("Gi", 1_000 << 30),
    ("Ti", 1_000 << 40),
    ("Pi", 1_000 << 50),
    ("Ei", 1_000 << 60),
];

impl Quantity {
    /// Reads an amount. Scientific notation is left out: nobody writes it by hand.
    ///
    /// # Errors
    /// What would be one.
    pub fn try_new(text: &str) -> Result<Self, String> {
        Self::read(text).ok_or_else(|| "write an amount such as 100m or 0.5 (CPU), 64Mi or 1Gi (memory)".to_owned())
    }

    fn read(text: &str) -> Option<Self> {
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let (_, scale) = SUFFIXES.into_iter().find(|(suffix, _)| *suffix == &text[number.len()..])?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || whole.len() + fraction.len() == 0 || whole.len() > 15 || fraction.len() > 9 {
            return None;
        }
        let value = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
        let below = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        let scaled = (value(whole)? * below + value(fraction)?).checked_mul(scale)?;
        // Kubernetes rounds up.
        let milli = scaled.div_ceil(below);
        (milli > 0).then(|| Self { text: text.to_owned(), milli })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.milli == other.milli
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.milli.cmp(&other.milli)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantity(text: &str) -> Quantity {
        Quantity::try_new(text).unwrap()
    }

    #[test]
    fn amounts_compare_as_what_they_mean() {
        assert_eq!(quantity("1"), quantity("1000m"));
        assert_eq!(quantity("0.5"), quantity("500m"));
        assert_eq!(quantity(".5"), quantity("500m"));
        assert_eq!(quantity("1Ki"), quantity("1024"));
        assert_eq!(quantity("1.5Gi"), quantity("1536Mi"));
        assert!(quantity("64Mi") < quantity("1Gi") && quantity("1G") < quantity("1Gi") && quantity("999999999999999Ei") > quantity("1E"));
    }

    #[test]
    fn nonsense_is_none() {
        for text in ["", "0", "-1", "1 Gi", "Mi", ".", "1.2.3", "1mi", "1e3", "ten", "1Mö", "9999999999999999", "0.0000000001", "٣"] {
            assert!(Quantity::try_new(text).is_err(), "{text}");
        }
    }
}
