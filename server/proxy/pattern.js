// A regular expression in a schema, which llama-server makes a grammar of: how large that would be.
import {atMost} from 'limits.js';

const TOKEN = /\\[^]|\[(?:[^\]\\]|\\[^])*\]|\(\?[:=!<]*|[()]|(\{(\d*)(,?)(\d*)\}|[*+?])\??|[^]/gy;

function checkPattern(text) {
    atMost('pattern_chars', text.length);
    let optional = 0;
    const groups = [{most: 1, last: 1}]; // of each open group: the product within, and that of its last part
    for (const [token, times, least, comma, most] of text.matchAll(TOKEN)) {
        const group = groups[groups.length - 1];
        if (token[0] === '(' ) {
            groups.push({most: 1, last: 1});
            atMost('pattern_depth', groups.length - 1);
        } else if (token === ')') {
            if (groups.length > 1) add(groups[groups.length - 2], groups.pop().most);
        } else if (times) {
            const counts = times[0] === '{' ? [Number(least), comma && most ? Number(most) : Number(least)] : [times[0] === '+' ? 1 : 0, 1];
            if (counts[0] === 0) atMost('pattern_optional', ++optional);
            add(group, group.last * Math.max(1, ...counts));
        } else {
            group.last = 1;
        }
    }
}

function add(group, product) {
    atMost('pattern_repeats', product);
    group.last = product;
    group.most = Math.max(group.most, product);
}

export {checkPattern};
