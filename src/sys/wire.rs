//! The encoding of the messages between harness, fork server and supervisor.
//!
//! Both ends are always the same binary, so there is no version and no schema: little-endian numbers,
//! length-prefixed bytes, fields in order. A message that does not decode gives an error, never a panic.

use std::time::Duration;

/// A value that can be sent in a message.
pub(crate) trait Wire: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn get(input: &mut &[u8]) -> Option<Self>;

    fn encode(&self) -> Vec<u8> {
        // Enough for a clean test. Growing the buffer would touch more memory, which a fork has to copy.
        let mut out = Vec::with_capacity(512);
        self.put(&mut out);
        out
    }

    /// Decodes a whole message; extra bytes are an error, as missing ones are.
    fn decode(mut input: &[u8]) -> Option<Self> {
        let value = Self::get(&mut input)?;
        input.is_empty().then_some(value)
    }
}

macro_rules! number {
    ($($ty:ty),*) => {$(
        impl Wire for $ty {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(input: &mut &[u8]) -> Option<Self> {
                let (bytes, rest) = input.split_first_chunk()?;
                *input = rest;
                Some(<$ty>::from_le_bytes(*bytes))
            }
        }
    )*};
}
number!(u8, u32, i32, u64);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        u8::from(*self).put(out);
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        match u8::get(input)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        for item in self {
            item.put(out);
        }
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        let len = u64::get(input)?;
        // Grown item by item: a wrong length is found at the end of the input and causes no large allocation.
        let mut items = Vec::new();
        for _ in 0..len {
            items.push(T::get(input)?);
        }
        Some(items)
    }
}

impl<T: Wire> Wire for [T; 2] {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|item| item.put(out));
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        Some([T::get(input)?, T::get(input)?])
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        out.extend_from_slice(self.as_bytes());
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        let len = usize::try_from(u64::get(input)?).ok()?;
        let (bytes, rest) = input.split_at_checked(len)?;
        *input = rest;
        String::from_utf8(bytes.to_vec()).ok()
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        if bool::get(input)? { T::get(input).map(Some) } else { Some(None) }
    }
}

impl<T: Wire> Wire for Box<T> {
    fn put(&self, out: &mut Vec<u8>) {
        T::put(self, out);
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        T::get(input).map(Box::new)
    }
}

impl Wire for Duration {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_secs().put(out);
        self.subsec_nanos().put(out);
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        let (secs, nanos) = (u64::get(input)?, u32::get(input)?);
        (nanos < 1_000_000_000).then(|| Duration::new(secs, nanos))
    }
}

/// Defines a struct that is encoded field by field, in order.
macro_rules! wire_struct {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $ty:ty,)*
    }) => {
        $(#[$meta])*
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $ty,)* }

        impl $crate::sys::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::sys::wire::Wire::put(&self.$field, out);)*
            }
            fn get(input: &mut &[u8]) -> Option<Self> {
                Some($name { $($field: $crate::sys::wire::Wire::get(input)?,)* })
            }
        }
    };
}
pub(crate) use wire_struct;

/// Defines an enum that is encoded by the index of the variant.
macro_rules! wire_enum {
    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $($(#[$variant_meta:meta])* $variant:ident $({ $($field:ident: $ty:ty),* $(,)? })?,)*
    }) => {
        $(#[$meta])*
        $vis enum $name { $($(#[$variant_meta])* $variant $({ $($field: $ty),* })?,)* }

        impl $crate::sys::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                let mut at = 0u8;
                $(
                    if let $name::$variant $({ $($field),* })? = self {
                        $crate::sys::wire::Wire::put(&at, out);
                        $($($crate::sys::wire::Wire::put($field, out);)*)?
                    }
                    at += 1;
                )*
                let _ = at;
            }
            fn get(input: &mut &[u8]) -> Option<Self> {
                let tag = <u8 as $crate::sys::wire::Wire>::get(input)?;
                let mut at = 0u8;
                $(
                    if tag == at {
                        return Some($name::$variant $({ $($field: $crate::sys::wire::Wire::get(input)?),* })?);
                    }
                    at += 1;
                )*
                let _ = at;
                None
            }
        }
    };
}
pub(crate) use wire_enum;
