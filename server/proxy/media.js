// Checks the pictures and sounds of a request: each is in the request itself, and says what it is decoded to.
// The reasons are in ../limits/media_rules.py, which checks the same for the local server.
import {Refused, atMost} from 'limits.js';

const NAMED = ['image_url', 'audio_url', 'video_url', 'file_url', 'input_image', 'input_audio', 'input_video'];
const DATA = /^data:[\w.+/-]{0,100};base64,/;
const NOT_BASE64 = /[^A-Za-z0-9+/=]|=[^=]|=[=]{2}/;
const PLACES = ['messages', 'input', 'system', 'prompt', 'contents'];
const LEAST_RATE = 8000; // samples a second: fewer would be stretched to many
const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const MP3 = [0xe2, 0xe3, 0xf2, 0xf3, 0xfa, 0xfb]; // the second byte of a frame of layer III
const JPEG_NO_SIZE = [0xc4, 0xc8, 0xcc];

function checkMedia(body) {
    const left = PLACES.map((place) => body[place]);
    let number = 0;
    while (left.length > 0) {
        const one = left.pop();
        if (typeof one !== 'object' || one === null) continue;
        if (!Array.isArray(one)) {
            for (const data of ofPart(one)) {
                atMost('media', ++number);
                atMost('picture_pixels', pixels(data));
            }
        }
        for (const name in one) left.push(one[name]);
    }
}

function ofPart(part) {
    const found = [];
    for (const name of NAMED) ofValue(part[name], found);
    const source = part.source;
    const isMedium = typeof source === 'object' && source !== null && source.type !== 'text';
    if (isMedium) ofValue({url: source.url, data: source.data}, found);
    if (Array.isArray(part.multimodal_data)) part.multimodal_data.forEach((one) => ofValue({data: one}, found));
    return found;
}

function ofValue(value, found) {
    if (typeof value === 'string') {
        found.push(ofAddress(value));
    } else if (typeof value === 'object' && value !== null) {
        if (typeof value.url === 'string') found.push(ofAddress(value.url));
        if (typeof value.data === 'string') found.push(decoded(value.data));
    }
}

function ofAddress(address) {
    const begin = DATA.exec(address.slice(0, 128));
    if (!begin) throw new Refused('A picture or sound is named by an address.', 'Send it: data:image/png;base64,…');
    return decoded(address.slice(begin[0].length));
}

function decoded(text) {
    if (text.length % 4 !== 0 || NOT_BASE64.test(text)) throw new Refused('A picture or sound is not base64.', 'Send it as data:image/png;base64,…');
    return Buffer.from(text, 'base64');
}

function pixels(data) {
    try {
        if (has(data, 0, PNG) && has(data, 12, letters('IHDR'))) return data.readUInt32BE(16) * data.readUInt32BE(20);
        if (has(data, 0, [0xff, 0xd8, 0xff])) return jpeg(data);
        if (has(data, 0, letters('GIF87a')) || has(data, 0, letters('GIF89a'))) return data.readUInt16LE(6) * data.readUInt16LE(8);
        if (has(data, 0, letters('BM'))) return bmp(data);
        if (has(data, 0, letters('RIFF')) && has(data, 8, letters('WAVE'))) return wav(data);
        if (has(data, 0, letters('ID3')) || (data[0] === 0xff && MP3.includes(data[1]))) return 0;
    } catch (error) {
        if (error instanceof Refused) throw error;
        throw new Refused('A picture or sound ends in its head.', 'Send the whole file.');
    }
    throw new Refused('A picture or sound has another format.', 'Send a PNG, JPEG, GIF or BMP, or a WAV or MP3.');
}

const letters = (text) => text.split('').map((letter) => letter.charCodeAt(0));
const has = (data, at, bytes) => bytes.every((byte, index) => data[at + index] === byte);

function bmp(data) {
    if (data.readUInt32LE(14) === 12) return data.readUInt16LE(18) * data.readUInt16LE(20); // the oldest header
    return Math.abs(data.readInt32LE(18)) * Math.abs(data.readInt32LE(22));
}

function jpeg(data) {
    let at = 2, largest = 0;
    while (at + 4 <= data.length && data[at] === 0xff) {
        const marker = data[at + 1];
        if (marker === 0xff || marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {
            at += marker === 0xff ? 1 : 2;
            continue;
        }
        if (marker >= 0xc0 && marker <= 0xcf && !JPEG_NO_SIZE.includes(marker)) {
            largest = Math.max(largest, data.readUInt16BE(at + 5) * data.readUInt16BE(at + 7));
        }
        if (marker === 0xda) break; // the pixels follow
        at += 2 + data.readUInt16BE(at + 2);
    }
    if (!largest) throw new Refused('A JPEG does not say its size.', 'Save it again.');
    return largest;
}

function wav(data) {
    let at = 12;
    while (!has(data, at, letters('fmt '))) {
        const size = data.readUInt32LE(at + 4);
        at += 8 + size + (size % 2);
    }
    const rate = data.readUInt32LE(at + 12);
    if (rate < LEAST_RATE) throw new Refused(`A sound has ${rate} samples a second.`, `Send one of at least ${LEAST_RATE}.`);
    return 0;
}

export {checkMedia};
