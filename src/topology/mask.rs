//! Sets of small numbers: cores and NUMA nodes.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// The bits in one word of a kernel mask.
const WORD: usize = usize::BITS as usize;
/// No machine has this many cores; a larger number in a list is a mistake, not a reason to allocate.
const LIMIT: usize = 1 << 16;

/// A set of core or NUMA node numbers, written as Linux does: `0-15,128-143`.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Mask {
    /// Words of the kernel's own layout, without zero words at the end.
    words: Vec<usize>,
}

impl Mask {
    /// No number at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a number.
    pub fn insert(&mut self, number: usize) {
        let word = number / WORD;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (number % WORD);
    }

    /// Whether the number is in it.
    pub fn contains(&self, number: usize) -> bool {
        self.words.get(number / WORD).is_some_and(|word| word >> (number % WORD) & 1 == 1)
    }

    /// Whether it has no number.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// How many numbers are in it.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.words.len() * WORD).filter(|&number| self.contains(number))
    }

    /// Those in both.
    pub fn and(&self, other: &Self) -> Self {
        self.iter().filter(|&number| other.contains(number)).collect()
    }

    /// Those in either.
    pub fn or(&self, other: &Self) -> Self {
        self.iter().chain(other.iter()).collect()
    }

    /// Whether they have a number in common.
    pub fn meets(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(a, b)| a & b != 0)
    }

    /// The kernel's layout of the set: bit *n* of the words, least significant first.
    pub fn words(&self) -> &[usize] {
        &self.words
    }
}

impl FromIterator<usize> for Mask {
    fn from_iter<I: IntoIterator<Item = usize>>(numbers: I) -> Self {
        let mut mask = Self::new();
        numbers.into_iter().for_each(|number| mask.insert(number));
        mask
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.iter().peekable();
        let mut comma = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if_eq(&(last + 1)) {
                last = next;
            }
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl Serialize for Mask {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A list that is not of the form `0-15,128`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a list of numbers such as 0-15,128")]
pub struct MaskError(String);

impl FromStr for Mask {
    type Err = MaskError;

    fn from_str(list: &str) -> Result<Self, MaskError> {
        let wrong = || MaskError(list.to_owned());
        let number = |text: &str| text.trim().parse().ok().filter(|&n: &usize| n < LIMIT).ok_or_else(wrong);
        let mut mask = Self::new();
        for part in list.trim().split(',').filter(|part| !part.trim().is_empty()) {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(wrong());
            }
            (first..=last).for_each(|number| mask.insert(number));
        }
        Ok(mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_read_and_print_as_linux_writes_them() {
        for list in ["", "0", "0-15,128-143", "3,5,7-9", "63-64"] {
            assert_eq!(list.parse::<Mask>().map(|mask| mask.to_string()).as_deref(), Ok(list));
        }
        assert_eq!("2,1,0\n".parse::<Mask>().map(|mask| mask.to_string()).as_deref(), Ok("0-2"));
        for wrong in ["a", "3-1", "1-", "-", "0x3", "99999999999"] {
            assert!(wrong.parse::<Mask>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sets_meet_and_join() {
        let mask = |list: &str| list.parse::<Mask>().expect("a list");
        assert_eq!(mask("0-9").and(&mask("8-20,70")), mask("8-9"));
        assert_eq!(mask("0").or(&mask("70")), mask("0,70"));
        assert!(!mask("0").meets(&mask("64")) && mask("1,64").meets(&mask("64")));
        assert_eq!(mask("1,64").words(), [2, 1]);
        assert_eq!(mask("0-3,9").len(), 5);
    }
}
