//! Talking to the kernel about one network namespace.
//!
//! A netlink socket belongs to the namespace its thread was in when it was opened. So each piece of
//! work has a thread of its own, which enters the namespace, does the work and ends. It waits for each
//! answer: the kernel gives it before it returns, and an emulated processor that has to see a runtime
//! for the first time takes longer for that than for all the kernel does.

use std::io;
use std::os::fd::BorrowedFd;

use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

use super::NetworkError;

/// The kernel's answers come in pieces of at most so many bytes.
const MOST: usize = 32 * 1024;

/// A way to the namespace its thread was in when it was opened.
pub struct Netlink {
    socket: Socket,
    /// The number of the last question.
    asked: u32,
}

impl Netlink {
    /// To the namespace this thread is in now.
    pub fn open() -> Result<Self, NetworkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(Self { socket, asked: 0 })
        };
        open().map_err(|source| failed("talk to the kernel about networks", source))
    }

    /// Has something changed, `how` as by the `NLM_F_` flags of `netlink(7)`. Blocks.
    pub fn change(&mut self, change: Message, how: u16) -> io::Result<()> {
        self.ask(change, NLM_F_ACK | how).map(drop)
    }

    /// All there is of a kind. Blocks.
    pub fn list(&mut self, kind: Message) -> io::Result<Vec<Message>> {
        self.ask(kind, NLM_F_DUMP)
    }

    fn ask(&mut self, question: Message, flags: u16) -> io::Result<Vec<Message>> {
        self.asked += 1;
        let mut question = NetlinkMessage::from(question);
        question.header.flags = NLM_F_REQUEST | flags;
        question.header.sequence_number = self.asked;
        question.finalize();
        let mut bytes = vec![0; question.buffer_len()];
        question.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut all = Vec::new();
        loop {
            let mut piece = Vec::with_capacity(MOST);
            self.socket.recv(&mut piece, 0)?;
            if hear(&piece, self.asked, &mut all)? {
                return Ok(all);
            }
        }
    }
}

/// Adds what a piece of an answer holds; says whether that was the last.
fn hear(mut piece: &[u8], asked: u32, all: &mut Vec<Message>) -> io::Result<bool> {
    while !piece.is_empty() {
        let message = NetlinkMessage::<Message>::deserialize(piece).map_err(io::Error::other)?;
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
        piece = piece.get(length.next_multiple_of(4)..).unwrap_or_default();
        if message.header.sequence_number != asked {
            continue;
        }
        match message.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::InnerMessage(inner) => all.push(inner),
            // Neither says anything, and there are no others.
            NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | _ => {}
        }
    }
    Ok(false)
}

/// Runs `work` in a namespace. Blocks.
pub fn in_namespace<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce(&mut Netlink) -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    on_a_thread(move || {
        enter(namespace)?;
        work(&mut Netlink::open()?)
    })
}

/// Runs `work` in a namespace, with a way to it behind one to the agent's own. Blocks.
pub fn in_both<T: Send>(
    other: BorrowedFd<'_>,
    work: impl FnOnce(&mut Netlink, &mut Netlink) -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    on_a_thread(move || {
        let mut home = Netlink::open()?;
        enter(other)?;
        work(&mut home, &mut Netlink::open()?)
    })
}

fn enter(namespace: BorrowedFd<'_>) -> Result<(), NetworkError> {
    let entered = setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    entered.map_err(|source| failed("enter a network namespace", source))
}

/// What was done when the kernel refused.
pub fn failed(what: impl Into<String>, source: io::Error) -> NetworkError {
    NetworkError::Kernel { what: what.into(), source }
}

/// Runs `work` on a thread of its own, which may then change its namespaces. Blocks.
pub fn on_a_thread<T: Send>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    std::thread::scope(|scope| {
        let unfinished = |_| io::Error::other("the thread ended before its work");
        let done = scope.spawn(work).join().map_err(unfinished);
        done.unwrap_or_else(|source| Err(failed("work in a network namespace", source)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_core::{ErrorMessage, NetlinkHeader};
    use rtnetlink::packet_route::link::LinkMessage;

    fn bytes(asked: u32, payload: NetlinkPayload<Message>) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.sequence_number = asked;
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn link(asked: u32) -> Vec<u8> {
        bytes(asked, NetlinkPayload::InnerMessage(Message::NewLink(LinkMessage::default())))
    }

    fn error(asked: u32, code: i32) -> Vec<u8> {
        let mut error = ErrorMessage::default();
        error.code = std::num::NonZero::new(code);
        error.header = vec![0; 16];
        bytes(asked, NetlinkPayload::Error(error))
    }

    #[test]
    fn an_answer_ends_with_the_kernels_word_for_it_and_not_before() {
        let mut all = Vec::new();
        assert!(!hear(&[link(7), link(7)].concat(), 7, &mut all).unwrap());
        assert!(hear(&[link(7), error(7, 0)].concat(), 7, &mut all).unwrap());
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error_with_its_number() {
        let refused = hear(&error(7, -libc::EEXIST), 7, &mut Vec::new()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EEXIST));
    }

    #[test]
    fn an_answer_to_an_older_question_is_passed_over() {
        let mut all = Vec::new();
        assert!(!hear(&[link(6), error(6, -libc::EPERM)].concat(), 7, &mut all).unwrap());
        assert!(all.is_empty());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for broken in [vec![1, 2, 3], vec![0; 16], link(7)[..20].to_vec()] {
            hear(&broken, 7, &mut Vec::new()).unwrap_err();
        }
    }

    /// The one namespace that is there without a right to anything.
    #[test]
    fn the_kernel_is_asked_for_all_links_and_refuses_what_is_not_there() {
        let mut netlink = Netlink::open().unwrap();
        let links = netlink.list(Message::GetLink(LinkMessage::default())).unwrap();
        assert!(links.iter().any(|link| matches!(link, Message::NewLink(_))));
        let nowhere = rtnetlink::LinkUnspec::new_with_index(u32::MAX >> 1).up().build();
        let refused = netlink.change(Message::SetLink(nowhere), 0).unwrap_err();
        let number = refused.raw_os_error();
        assert!(matches!(number, Some(libc::ENODEV | libc::EPERM)), "{refused}");
    }
}
