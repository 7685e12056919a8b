//! The message type: what a frame is, in 32 bits.

use std::fmt;

/// `kind (4 bits) | category (8) | number (12) | version (8)`.
///
/// The associated constants are the *request* types; the answer to one is its
/// [`response`](Self::response).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageType(pub u32);

/// The top four bits of a [`MessageType`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Host to guest; is answered.
    Request,
    /// Guest to host; answers the request of the same id.
    Response,
    /// Guest to host; is not answered.
    Notification,
    /// Anything else; no program sends it.
    Unknown(u8),
}

/// The family of messages a [`MessageType`] belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Category {
    /// hcsshim's messages about the VM and its containers.
    ComputeSystem,
    /// Ours; used only after both ends said so in the negotiation.
    Coracle,
    /// Anything else. Newer hcsshim versions use 2.
    Unknown(u8),
}

impl MessageType {
    /// Makes a container (or, on the null id, names the host's end of the VM).
    pub const CREATE: Self = Self(0x1010_0101);
    /// Starts a container; the first process does it on Linux.
    pub const START: Self = Self(0x1010_0201);
    /// Asks a container, or the VM, to stop.
    pub const SHUTDOWN_GRACEFUL: Self = Self(0x1010_0301);
    /// Makes a container, or the VM, stop.
    pub const SHUTDOWN_FORCED: Self = Self(0x1010_0401);
    /// Starts a process.
    pub const EXECUTE_PROCESS: Self = Self(0x1010_0501);
    /// Waits for the end of a process.
    pub const WAIT_FOR_PROCESS: Self = Self(0x1010_0601);
    /// Sends a process a signal.
    pub const SIGNAL_PROCESS: Self = Self(0x1010_0701);
    /// Tells a process the size of its terminal.
    pub const RESIZE_CONSOLE: Self = Self(0x1010_0801);
    /// Asks for a container's processes and counters.
    pub const GET_PROPERTIES: Self = Self(0x1010_0901);
    /// Adds, removes or changes a resource in the guest.
    pub const MODIFY_SETTINGS: Self = Self(0x1010_0A01);
    /// The first message: agrees on a version.
    pub const NEGOTIATE_PROTOCOL: Self = Self(0x1010_0B01);
    /// Asks for the stacks of the guest program.
    pub const DUMP_STACKS: Self = Self(0x1010_0C01);
    /// Forgets a container that has exited.
    pub const DELETE_CONTAINER_STATE: Self = Self(0x1010_0D01);
    /// Tells the guest of the VM's own life (saved, restored). Newer hcsshim versions gave this
    /// number to another message and moved this one up by one.
    pub const LIFECYCLE_NOTIFICATION: Self = Self(0x1010_0E01);
    /// A container has exited (guest to host).
    pub const CONTAINER_NOTIFICATION: Self = Self(0x3010_0101);

    /// Ours: asks what the guest holds; the first request of a resumed session.
    pub const LIST_STATE: Self = Self(0x1F00_0101);
    /// Ours: the host has recorded an exit, so the guest may forget it.
    pub const ACK_EXIT: Self = Self(0x1F00_0201);
    /// Ours: connects the stdio of a running process again, from given offsets on.
    pub const ATTACH_STDIO: Self = Self(0x1F00_0301);
    /// Ours: asks for the next piece of a long text.
    pub const CHUNK: Self = Self(0x1F00_0401);

    /// The type made of its parts.
    pub const fn new(kind: Kind, category: Category, number: u16, version: u8) -> Self {
        let kind = match kind {
            Kind::Request => 1,
            Kind::Response => 2,
            Kind::Notification => 3,
            Kind::Unknown(bits) => bits as u32 & 0xF,
        };
        let category = match category {
            Category::ComputeSystem => 0x01,
            Category::Coracle => 0xF0,
            Category::Unknown(bits) => bits as u32,
        };
        Self(kind << 28 | category << 20 | (number as u32 & 0xFFF) << 8 | version as u32)
    }

    /// Request, response or notification.
    pub const fn kind(self) -> Kind {
        match self.0 >> 28 {
            1 => Kind::Request,
            2 => Kind::Response,
            3 => Kind::Notification,
            _ => Kind::Unknown((self.0 >> 28).to_le_bytes()[0]),
        }
    }

    /// The family of messages.
    pub const fn category(self) -> Category {
        match (self.0 >> 20).to_le_bytes()[0] {
            0x01 => Category::ComputeSystem,
            0xF0 => Category::Coracle,
            bits => Category::Unknown(bits),
        }
    }

    /// The number within its category, 12 bits.
    pub const fn number(self) -> u16 {
        let bytes = (self.0 >> 8 & 0xFFF).to_le_bytes();
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// The version of this message; 1 for all that exist.
    pub const fn version(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// The type of the answer to this request: the same but for the kind.
    pub const fn response(self) -> Self {
        Self(self.0 & 0x0FFF_FFFF | 2 << 28)
    }

    fn name(self) -> Option<&'static str> {
        Some(match Self(self.0 & 0x0FFF_FFFF | 1 << 28) {
            Self::CREATE => "Create",
            Self::START => "Start",
            Self::SHUTDOWN_GRACEFUL => "ShutdownGraceful",
            Self::SHUTDOWN_FORCED => "ShutdownForced",
            Self::EXECUTE_PROCESS => "ExecuteProcess",
            Self::WAIT_FOR_PROCESS => "WaitForProcess",
            Self::SIGNAL_PROCESS => "SignalProcess",
            Self::RESIZE_CONSOLE => "ResizeConsole",
            Self::GET_PROPERTIES => "GetProperties",
            Self::MODIFY_SETTINGS => "ModifySettings",
            Self::NEGOTIATE_PROTOCOL => "NegotiateProtocol",
            Self::DUMP_STACKS => "DumpStacks",
            Self::DELETE_CONTAINER_STATE => "DeleteContainerState",
            Self::LIFECYCLE_NOTIFICATION => "LifecycleNotification",
            Self::LIST_STATE => "ListState",
            Self::ACK_EXIT => "AckExit",
            Self::ATTACH_STDIO => "AttachStdio",
            Self::CHUNK => "Chunk",
            _ => return None,
        })
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (*self, self.kind(), self.name()) {
            (Self::CONTAINER_NOTIFICATION, _, _) => f.write_str("container notification"),
            (_, Kind::Request, Some(name)) => write!(f, "{name} request"),
            (_, Kind::Response, Some(name)) => write!(f, "{name} response"),
            _ => write!(f, "0x{:08x}", self.0),
        }
    }
}

impl fmt::Debug for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:08x}", self.0)
    }
}
