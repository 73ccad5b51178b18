//! Pairs: a value for each leg of a connection, or for each direction.

/// One of a connection's two legs, named by the end that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// The client's.
    Client = 0,
    /// The server's.
    Server = 1,
}

impl Side {
    /// Both, the client's first.
    pub const BOTH: [Self; 2] = [Self::Client, Self::Server];

    /// The other leg.
    #[inline(always)]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

macro_rules! pair {
    ($(#[$doc:meta])* $name:ident, $(#[$first_doc:meta])* $first:ident, $(#[$second_doc:meta])* $second:ident, $(#[$of:meta])*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct $name<T> {
            $(#[$first_doc])*
            pub $first: T,
            $(#[$second_doc])*
            pub $second: T,
        }

        impl<T> $name<T> {
            $(#[$of])*
            #[inline(always)]
            pub const fn of(&self, side: Side) -> T
            where
                T: Copy,
            {
                // By a branch: the verifier rejects a variable offset into the stack.
                match side {
                    Side::Client => self.$first,
                    Side::Server => self.$second,
                }
            }

            /// As [`of`](Self::of), as a reference.
            pub const fn get(&self, side: Side) -> &T {
                match side {
                    Side::Client => &self.$first,
                    Side::Server => &self.$second,
                }
            }

            /// As [`of`](Self::of), as a mutable reference.
            pub const fn get_mut(&mut self, side: Side) -> &mut T {
                match side {
                    Side::Client => &mut self.$first,
                    Side::Server => &mut self.$second,
                }
            }

            /// Makes both, the client's first.
            pub fn from_fn(mut make: impl FnMut(Side) -> T) -> Self {
                Self { $first: make(Side::Client), $second: make(Side::Server) }
            }

            /// Converts both, the client's first.
            pub fn map<U>(self, mut convert: impl FnMut(T) -> U) -> $name<U> {
                $name { $first: convert(self.$first), $second: convert(self.$second) }
            }

            /// Both, the client's first.
            pub const fn each_ref(&self) -> [&T; 2] {
                [&self.$first, &self.$second]
            }

            /// As [`each_ref`](Self::each_ref).
            pub fn iter(&self) -> core::array::IntoIter<&T, 2> {
                self.each_ref().into_iter()
            }

            /// Both, as mutable references, the client's first.
            pub const fn each_mut(&mut self) -> [&mut T; 2] {
                [&mut self.$first, &mut self.$second]
            }
        }

        /// The client's first.
        impl<T> From<[T; 2]> for $name<T> {
            fn from([$first, $second]: [T; 2]) -> Self {
                Self { $first, $second }
            }
        }

        // The ABI: what was an array of two, the client's first, is the same bytes.
        const _: () = {
            use core::mem::{offset_of, size_of};
            assert!(size_of::<$name<u32>>() == 8 && offset_of!($name<u32>, $first) == 0);
            assert!(offset_of!($name<u32>, $second) == 4);
        };
    };
}

pair! {
    /// One for each leg.
    PerLeg,
    /// The client's.
    client,
    /// The server's.
    server,
    /// That of one leg.
}

pair! {
    /// One for each direction.
    PerDirection,
    /// From the client to the server.
    request,
    /// From the server to the client.
    response,
    /// That of the packets which the end at this side sends.
}
