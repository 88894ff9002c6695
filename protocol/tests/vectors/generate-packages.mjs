// Writes shell.jsonl and duration.jsonl: what the npm packages that the original uses make of odd text.
// Run in a scratch folder: `npm install shell-quote@1.8.1 parse-duration@2.1.4`, copy this file there, `node generate-packages.mjs`,
// and copy the two .jsonl files back. The seed is fixed; the output is ASCII.
import { writeFileSync } from 'node:fs';
import parseDuration from 'parse-duration';
import { parse } from 'shell-quote';

let seed = 0x7368656c;
const random = () => {
  seed = (seed + 0x6d2b79f5) | 0;
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
};
const below = (n) => Math.floor(random() * n);
const one = (list) => list[below(list.length)];
const some = (n, make) => Array.from({ length: below(n) + 1 }, make);
const ascii = (value) =>
  JSON.stringify(value).replace(/[^\x20-\x7e]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);
const lines = (list) => list.map((line) => `${ascii(line)}\n`).join('');

// --- commands ----------------------------------------------------------------------------------------------------

const ENVS = [{}, { A: '1' }, { A: 'x y', B: '', _: 'under', 'A:-b': 'default', 'a.b': 'dot' }, { A: "it's \"$B\"", B: '*', '': 'empty', '?': 'q', '1': 'one' }];
const COMMANDS = [
  '', ' ', '\n', 'echo $A', 'echo "$A"', "echo '$A'", 'echo ${A}', 'echo ${A}b $Ab', 'echo $', 'echo $ a', 'echo "$"', 'echo a$', 'echo $$ b', 'echo $$$A', '$?',
  '$_FOO', '$-x', '"$?" a', '"$_"b" c', '$!\\; a', '$@;', '$*', '$#', '$# a', '${}', 'a ${} ; b', '${', '${A', '"${A"', '"${A b}"', '${A b}', '${A:-b}', "'${}'", '# ${}', 'a # ${}',
  '${a.b}', '$a.b', '${A}}', '${$A}', 'a\\ b', 'a\\', 'a \\', 'a \\\n b', 'a\\\nb', 'a\\\tb', 'a\\"b', "a\\'b", '"a\\"b"', '"a\\\\b"', '"a\\$A"', '"a\\nb"', '"a\\', "'a\\'b'", "'a\\'",
  '"a\\"', '"a', "'a", 'a"b', "a'b c", '"a" "b', "it's", '"it\'s"', "a''b", '""', "''", "'' \"\" a", '"a"b\'c\'d', 'a|b', 'a || b', 'a && b', 'a;b', 'a ;; b', '(a)', 'a > b',
  'a >> b', 'a >& b', 'a <& b', 'a <<< b', 'a <(b)', 'a |& b', 'a\\|b', 'a\\;b', '"a|b"', "'a;b'", '*', 'a*', 'a?', '\\*', '"*"', "'?'", '[ab]', '{a,b}', '~', '~/x', '`ls`', '`l s`', 'A=1 b',
  '#', 'a#b', 'a\\#b', '"#"', 'a "b # c" d', '!x', '@', '%', '^', '=', ':', ',', 'a\u00a0b', 'a\ufeffb', 'a\u0085b', 'a\u2028b', 'a\u3000b', 'a\u000bb', 'a\fb', 'a\rb', '\u00e9 $\u00e9', '\u{1f600}', '\\\u{1f600}',
  '$\u{1f600}', '"$\u{1f600}"', 'a\u0000b', '$1', '${1}', '$A$A', '$A"$A"\'$A\'', "\\$A", '\\\\$A', '\\\\\\$A', 'sh -c "for i in 1 2; do echo $i; done"',
  'sh -c "echo $A > /outputs/o"', "sh -c 'cat $JOB_INPUTS/a'", 'cat $JOB_INPUTS/a', 'ls *.txt', 'run --tag a#b', 'python -c \'print("hello")\'', 'bash -c "echo \\"$A\\" && ls"',
];
const PIECES = ['a', 'b c', ' ', '  ', '\n', '\t', '\\', '\\\\', '\\"', "\\'", '"', '"', "'", "'", '$', '$A', '${A}', '${B', '}', '{', '$_', '$?', '$$', '$#', ';', '|', '&', '*', '#', '<', '(', '=', '-', '1', '\u00e9', '\u{1f600}'];
const PLAIN = PIECES.filter((piece) => !/^[;|&*#<(]$|\$\{B|\$#/.test(piece));
const commands = COMMANDS.flatMap((text) => [ENVS[1], ENVS[3]].map((env) => [text, env]));
for (const text of COMMANDS.filter((text) => text.includes('$'))) commands.push([text, ENVS[2]]);
while (commands.length < 900) commands.push([some(9, () => one(random() < 0.8 ? PLAIN : PIECES)).join(''), one(ENVS)]);

const shell = commands.map(([text, env]) => {
  try {
    const words = parse(text, env);
    return { text, env, argv: words.some((word) => typeof word !== 'string') ? [text] : words };
  } catch {
    return { text, env, refused: true };
  }
});
// `$_` in front of a surrogate pair swallows half of it; such a command is not worth following.
const whole = shell.filter(({ refused, argv }) => refused || argv.every((word) => word.isWellFormed()));
writeFileSync('shell.jsonl', lines(whole));

// --- durations ---------------------------------------------------------------------------------------------------

const DURATIONS = [
  '', ' ', 'x', '10m', '1h', '1h30', '1h30m', '1 h 30 m', '90', '0', '0s', '-5m', ' -5m', '-', '1.5h', '.5h', '1.h', '1e3', '1e3s', '1E-2d', '1e', '5M', '5Mo', '5mo', '5mth', '2 weeks', '2wks', '3days',
  '1,000s', '1_000', '1 000', '1,2,3', '1 2 3s', '1,,2', '1y', '1 year 2 months', '5us', '5\u00b5s', '5\u03bcs', '5ns', '5ns3', '5us 3', '5ms 3', '5 foo', '5 foo 30', '5  m', '5\tm', '5\u00a0m', '5\nm', '1d12',
  '1w3', '1mo2', '1y6', '1y6mo2w', '10 minutes and 5 seconds', 'in 10 minutes', 'abc10mxyz', '10minutess', '10ss', '10S', '10 SECONDS', '12345678901234567890s', '1.12345678901234567890s', '1e12345s', '1e400', '1e-400s',
  '1h-30m', '--5m', '5m-', '1.2.3s', '1..2s', '5 abcdefghijklmnopq', '\u0663m', '5\u00e9', '3hr 2min 1sec', '1 millisecond', '1 millisec', '2 microseconds', '2 nanosec', '1hour30', '1h1h', '1:30', '01:30:00', 'PT1H30M',
  '1d 2h 3m 4s 5ms', 'Infinity', 'NaN', '5 ks', 'w', 's5', '5m5', '5s5', '1h 30', '100y', '1 mth', '10 m s',
];
const TERMS = ['1', '12', '0', '1.5', '.5', '1e2', '1,000', '30', ' ', ' ', ',', '_', '-', '+', '.', 'ms', 's', 'sec', 'seconds', 'm', 'min', 'h', 'hours', 'd', 'days', 'w', 'mo', 'months', 'y', 'us', 'ns', 'x', 'e', 'and', 'S', 'M'];
const durations = [...DURATIONS];
while (durations.length < 600) durations.push(some(7, () => one(TERMS)).join(''));
const duration = durations.map((text) => {
  const ms = parseDuration(text);
  return { text, ms: ms === null ? null : String(ms) };
});
writeFileSync('duration.jsonl', lines(duration));
