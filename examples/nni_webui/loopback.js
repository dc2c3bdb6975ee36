// NNI's manager listens on every network interface, and whoever reaches it may start programs on
// this machine. Node loads this file ahead of it, by NODE_OPTIONS: then it listens on 127.0.0.1.
const net = require('net');

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
    if (Number.isInteger(port) && typeof rest[0] !== 'string') {
        return listen.call(this, port, '127.0.0.1', ...rest);
    }
    return listen.call(this, port, ...rest);
};
