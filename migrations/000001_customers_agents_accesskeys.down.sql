DROP TABLE accesskeys;
DROP TABLE agents;
DROP TABLE customers;
