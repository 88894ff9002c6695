//! What a terminal does with the bytes that a program sends it, as far as one line can show it: colours, carriage returns, deleting.

/// The longest control sequence that is waited for, in characters: a longer one is none, and is left out.
const SEQUENCE_MAX: usize = 256;
/// The columns between tab stops.
const TAB: usize = 8;

/// One of the colours of a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Colour {
    /// That of plain text, or of the background.
    #[default]
    Default,
    /// One of 256: 0 to 7, their brighter forms, a cube, greys.
    Palette(u8),
    /// Red, green, blue.
    Rgb(u8, u8, u8),
}

/// How a character looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Style {
    /// The colour of the character.
    pub fore: Colour,
    /// The colour behind it.
    pub back: Colour,
    /// Of [`Style::BOLD`] and so on.
    pub flags: u8,
}

impl Style {
    /// Bold.
    pub const BOLD: u8 = 1;
    /// Faint.
    pub const DIM: u8 = 1 << 1;
    /// Italic.
    pub const ITALIC: u8 = 1 << 2;
    /// Underlined.
    pub const UNDERLINE: u8 = 1 << 3;
    /// With its two colours exchanged.
    pub const INVERSE: u8 = 1 << 4;
    /// Struck out.
    pub const STRIKE: u8 = 1 << 5;

    /// "Select graphic rendition" (ECMA-48, 8.3.117), with the usual additions for 256 and all colours.
    fn render(&mut self, parameters: &str) {
        // 38:5:1 and 38;5;1 are both written for one thing.
        let mut codes =
            parameters.split([';', ':']).map(|code| if code.is_empty() { 0 } else { code.parse().unwrap_or(u16::MAX) });
        while let Some(code) = codes.next() {
            match code {
                0 => *self = Self::default(),
                1 => self.flags |= Self::BOLD,
                2 => self.flags |= Self::DIM,
                3 => self.flags |= Self::ITALIC,
                4 => self.flags |= Self::UNDERLINE,
                7 => self.flags |= Self::INVERSE,
                9 => self.flags |= Self::STRIKE,
                22 => self.flags &= !(Self::BOLD | Self::DIM),
                23 => self.flags &= !Self::ITALIC,
                24 => self.flags &= !Self::UNDERLINE,
                27 => self.flags &= !Self::INVERSE,
                29 => self.flags &= !Self::STRIKE,
                30..=37 => self.fore = Colour::Palette(small(code - 30)),
                38 => self.fore = extended(&mut codes).unwrap_or(self.fore),
                39 => self.fore = Colour::Default,
                40..=47 => self.back = Colour::Palette(small(code - 40)),
                48 => self.back = extended(&mut codes).unwrap_or(self.back),
                49 => self.back = Colour::Default,
                90..=97 => self.fore = Colour::Palette(small(code - 82)),
                100..=107 => self.back = Colour::Palette(small(code - 92)),
                _ => {}
            }
        }
    }
}

fn small(code: u16) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn extended(codes: &mut impl Iterator<Item = u16>) -> Option<Colour> {
    match codes.next()? {
        5 => Some(Colour::Palette(small(codes.next()?))),
        2 => Some(Colour::Rgb(small(codes.next()?), small(codes.next()?), small(codes.next()?))),
        _ => None,
    }
}

/// A line that is being written.
#[derive(Clone, Debug, Default)]
pub(super) struct Pen {
    cells: Vec<(char, Style)>,
    column: usize,
    style: Style,
    /// A control sequence whose end has not come.
    sequence: Option<String>,
}

impl Pen {
    /// Takes one character that is no newline.
    pub(super) fn put(&mut self, c: char) {
        if let Some(sequence) = &mut self.sequence {
            sequence.push(c);
            match ending(sequence) {
                Ending::Open if sequence.len() < SEQUENCE_MAX => {}
                Ending::Open => self.sequence = None,
                Ending::Done => {
                    let sequence = self.sequence.take().unwrap_or_default();
                    self.obey(&sequence);
                }
            }
            return;
        }
        match c {
            '\u{1b}' => self.sequence = Some(String::new()),
            '\r' => self.column = 0,
            '\u{8}' => self.column = self.column.saturating_sub(1),
            '\t' => {
                for _ in 0..TAB - self.column % TAB {
                    self.write(' ');
                }
            }
            // Other control characters have no look, and direction marks could make a line look like another.
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {}
            c => self.write(c),
        }
    }

    fn write(&mut self, c: char) {
        let cell = (c, self.style);
        match self.cells.get_mut(self.column) {
            Some(place) => *place = cell,
            None => self.cells.push(cell),
        }
        self.column += 1;
    }

    fn obey(&mut self, sequence: &str) {
        let Some(control) = sequence.strip_prefix('[') else { return };
        let Some(last) = control.chars().last() else { return };
        let parameters = &control[..control.len() - last.len_utf8()];
        let count = || parameters.parse::<usize>().unwrap_or(1).max(1);
        match last {
            'm' => self.style.render(parameters),
            // Erase in line: to its end, to its start, all of it.
            'K' => match parameters {
                "" | "0" => self.cells.truncate(self.column),
                "1" => self.cells.iter_mut().take(self.column + 1).for_each(|cell| *cell = (' ', Style::default())),
                "2" => {
                    self.cells.clear();
                    self.pad();
                }
                _ => {}
            },
            'C' => {
                self.column = (self.column + count()).min(self.cells.len());
            }
            'D' => self.column = self.column.saturating_sub(count()),
            'G' => self.column = (count() - 1).min(self.cells.len()),
            _ => {}
        }
    }

    fn pad(&mut self) {
        while self.cells.len() < self.column {
            self.cells.push((' ', Style::default()));
        }
    }

    /// How many characters the line has.
    pub(super) fn width(&self) -> usize {
        self.cells.len()
    }

    /// The line as it stands.
    pub(super) fn line(&self) -> Line {
        let mut line = Line::default();
        let mut style = Style::default();
        for &(c, look) in &self.cells {
            if look != style {
                line.spans.push((u32::try_from(line.text.len()).unwrap_or(u32::MAX), look));
                style = look;
            }
            line.text.push(c);
        }
        line
    }

    /// The line as it stands, and the next one begins with the same look.
    pub(super) fn finish(&mut self) -> Line {
        let line = self.line();
        self.cells.clear();
        self.column = 0;
        // A line's end ends whatever was begun: it must not take the next line with it.
        self.sequence = None;
        line
    }
}

/// Text, and from which byte on it looks how; plain before the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) spans: Vec<(u32, Style)>,
}

enum Ending {
    Open,
    Done,
}

/// Whether what follows an escape is a whole sequence (ECMA-48, 5.3 to 5.6).
fn ending(sequence: &str) -> Ending {
    let mut chars = sequence.chars();
    let done = match chars.next() {
        Some('[') => chars.next_back().is_some_and(|c| matches!(c, '@'..='~')),
        // Titles and links end with a bell, or with an escape and a backslash.
        Some(']' | 'P' | 'X' | '^' | '_') => sequence.ends_with('\u{7}') || sequence.ends_with("\u{1b}\\"),
        Some(' '..='/') => chars.next_back().is_some_and(|c| matches!(c, '0'..='~')),
        Some(_) | None => true,
    };
    if done { Ending::Done } else { Ending::Open }
}
