//! Checked reads over bytes from the network: a short or malformed message is an error, never a panic.

/// What is wrong with bytes that came from the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends before its last field.
    #[error("{message}: ends inside field `{field}`")]
    Truncated {
        /// Message name of the protocol documentation.
        message: &'static str,
        /// Field name.
        field: &'static str,
    },
    /// Bytes are left after the last field.
    #[error("{message}: {left} bytes too many")]
    TrailingBytes {
        /// Message name.
        message: &'static str,
        /// How many.
        left: usize,
    },
    /// A tag the protocol does not define.
    #[error("{message}: unknown {field} {tag:#04x}")]
    UnknownTag {
        /// Message name.
        message: &'static str,
        /// Field name.
        field: &'static str,
        /// The byte found.
        tag: u8,
    },
    /// A string is not UTF-8 although `client_encoding` is.
    #[error("{message}: field `{field}` is not UTF-8")]
    NotUtf8 {
        /// Message name.
        message: &'static str,
        /// Field name.
        field: &'static str,
    },
    /// A length that cannot be.
    #[error("{message}: length {length} in `{field}` cannot be")]
    BadLength {
        /// Message name.
        message: &'static str,
        /// Field name.
        field: &'static str,
        /// The length found.
        length: i64,
    },
}

/// Reads the fields of one message in order, without copying.
#[derive(Debug)]
pub struct FieldReader<'a> {
    message: &'static str,
    bytes: &'a [u8],
}

impl<'a> FieldReader<'a> {
    /// A reader over the body of `message`.
    #[must_use]
    pub fn new(message: &'static str, bytes: &'a [u8]) -> Self {
        Self { message, bytes }
    }

    fn take<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        match self.bytes.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.bytes = rest;
                Ok(*head)
            }
            None => Err(DecodeError::Truncated { message: self.message, field }),
        }
    }

    /// One byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.take(field).map(u8::from_be_bytes)
    }

    /// Big-endian 16-bit count.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.take(field).map(u16::from_be_bytes)
    }

    /// Big-endian 32 bits.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.take(field).map(u32::from_be_bytes)
    }

    /// Big-endian signed 32 bits.
    pub fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.take(field).map(i32::from_be_bytes)
    }

    /// Big-endian 64 bits.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.take(field).map(u64::from_be_bytes)
    }

    /// Big-endian signed 64 bits.
    pub fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.take(field).map(i64::from_be_bytes)
    }

    /// `count` bytes.
    pub fn bytes(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], DecodeError> {
        match self.bytes.split_at_checked(count) {
            Some((head, rest)) => {
                self.bytes = rest;
                Ok(head)
            }
            None => Err(DecodeError::Truncated { message: self.message, field }),
        }
    }

    /// A length-prefixed (Int32) byte string.
    pub fn sized(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.i32(field)?;
        let count = usize::try_from(length).map_err(|_| DecodeError::BadLength {
            message: self.message,
            field,
            length: i64::from(length),
        })?;
        self.bytes(field, count)
    }

    /// A null-terminated string.
    pub fn string(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let Some(end) = self.bytes.iter().position(|byte| *byte == 0) else {
            return Err(DecodeError::Truncated { message: self.message, field });
        };
        let raw = self.bytes(field, end)?;
        self.u8(field)?;
        match std::str::from_utf8(raw) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(DecodeError::NotUtf8 { message: self.message, field }),
        }
    }

    /// Whatever is left.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// The next byte without taking it.
    pub fn peek(&self, field: &'static str) -> Result<u8, DecodeError> {
        self.bytes.first().copied().ok_or(DecodeError::Truncated { message: self.message, field })
    }

    /// Fails when bytes are left.
    pub fn end(self) -> Result<(), DecodeError> {
        match self.bytes.len() {
            0 => Ok(()),
            left => Err(DecodeError::TrailingBytes { message: self.message, left }),
        }
    }

    /// An error about a tag of this message.
    #[must_use]
    pub fn unknown_tag(&self, field: &'static str, tag: u8) -> DecodeError {
        DecodeError::UnknownTag { message: self.message, field, tag }
    }
}
