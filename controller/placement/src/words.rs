//! Interned words: labels, racks, tenants, groups, licenses, kinds of hypervisor.

use std::collections::HashMap;

use crate::{Error, ErrorKind, Result};

/// Most words a snapshot knows. Words are never forgotten: a grid that has seen this many groups and
/// tenants is rebuilt by starting anew.
pub const MAX_WORDS: usize = 1 << 22;
/// Longest word.
pub const MAX_WORD_BYTES: usize = 1024;

/// A word of one snapshot. It means nothing to another snapshot, so words are persisted, not symbols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Symbol(pub(crate) u32);

#[derive(Debug, Clone, Default)]
pub(crate) struct Words {
    symbols: HashMap<Box<str>, Symbol>,
    words: Vec<Box<str>>,
}

impl Words {
    pub(crate) fn intern(&mut self, word: &str) -> Result<Symbol> {
        if let Some(symbol) = self.symbols.get(word) {
            return Ok(*symbol);
        }
        if word.len() > MAX_WORD_BYTES || self.words.len() >= MAX_WORDS {
            let context = format!("a word of {} bytes beside {} words", word.len(), self.words.len());
            return Err(Error::new(ErrorKind::TooLarge, context));
        }
        let symbol = Symbol(self.words.len() as u32);
        self.words.push(word.into());
        self.symbols.insert(word.into(), symbol);
        Ok(symbol)
    }

    pub(crate) fn symbol(&self, word: &str) -> Option<Symbol> {
        self.symbols.get(word).copied()
    }

    /// A symbol of another snapshot has no word here.
    pub(crate) fn word(&self, symbol: Symbol) -> &str {
        self.words.get(symbol.0 as usize).map_or("?", |word| word)
    }
}
